"""FedPA's adapters around the linear layers of any PyTorch module."""
