"""Arrays and text -> tensors: transforms, tokenizers, collation.

images, videos, waveforms   pixels, frames and samples to model input, training and evaluation
tokenizers, wordpiece       ONE-PEACE's and the language models' tokenizers; uncased BERT's
masking                     which units a denoising student does not see
talking                     media dealt to prompts, rows and batches (both Owls)
"""
