"""What is trained: backbones, language models, adapters, user branches, and the mathematics they are asked by."""
