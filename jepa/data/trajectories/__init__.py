"""Recorded episodes of frames, actions and states: readers of several layouts, aligned by time."""
