"""Repairs: what each method gains and costs, and whether certificates keep their level."""
