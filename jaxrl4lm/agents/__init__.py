"""Algorithms on gymnax environments, one file each."""
