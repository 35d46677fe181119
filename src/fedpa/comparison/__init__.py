"""Comparison of methods: what is measured, with what, and what the results say."""
