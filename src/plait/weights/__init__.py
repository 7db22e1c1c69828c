"""Checkpoint files, read without executing anything, and reversible key rules.

path -> read_checkpoint -> Checkpoint -> KeyMap.forward -> native state -> load_strict -> module

    files      every kind of file in circulation, and strict loading
    unpickle   pickles as data: tensors and plain containers, nothing executed
    keymap     rules between official and native keys, there and back bit for bit
    lora       LoRA directories, merged tensor by tensor
    dtypes     floating-point types by name
"""
