"""Networks whose features images are judged by, equal to their PyTorch originals: a module and a key map each."""
