"""Nodes that are other people's, reached by Flower: a ServerApp, a ClientApp and what they say to each other."""
