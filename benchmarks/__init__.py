"""Measurements that README quotes; each is one command."""
