"""Masked training: one step, its compiled programs, whole runs of a chunk of replicates."""
