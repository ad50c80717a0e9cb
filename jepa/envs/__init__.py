"""Environments: the built-in rooms, PushT, and any that speaks ``gymnasium``, as tasks with goals given as pictures."""

import gymnasium

if "jepa/Rooms-v0" not in gymnasium.registry:
    gymnasium.register(id="jepa/Rooms-v0", entry_point="jepa.envs.rooms_env:RoomsEnv")
