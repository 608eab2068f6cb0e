"""The mean-shift patch: do its intervals hold the truth, and does it see more than donor pairs?"""
