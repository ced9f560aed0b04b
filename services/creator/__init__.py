"""The creator: turns a recipe into a new vPLM in well under a second.

It owns the catalogue of backbones and the step from (backbone, PET kind, head, seed) to initial
weights. It keeps no bytes itself: what it makes goes to storage, acting for the tenant who asked,
and what it is asked about vPLMs it reads there. It never loads a backbone's weights into memory,
needs no torch, and leaves training and serving to the trainer and the processor.
"""
