"""Where modalities meet: encoders and decoders over tokens of several modalities."""
