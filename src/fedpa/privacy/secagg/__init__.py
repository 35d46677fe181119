"""Secure aggregation: a server learns the sum of its nodes' vectors and nothing else. Experimental, unreviewed.

After Bonawitz et al. (CCS 2017) and, for many nodes, Bell et al. (CCS 2020), over integers modulo 2^64, so that the sum
is the very one that would be computed without it. What it covers and what not: ``docs/secure-aggregation.md``.
"""
