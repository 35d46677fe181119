"""Drivers: how orders reach nodes. In this process, on Ray, on Flower."""
