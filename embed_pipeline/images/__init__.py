"""Bytes to pixels: limits, decoding, preprocessing."""
