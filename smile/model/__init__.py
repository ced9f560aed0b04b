"""The mathematics: backbones, PET modules, heads, their trainable and their batched form."""
