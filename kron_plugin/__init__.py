"""Kronecker Recurrent Units for fairseq and PyTorch."""
