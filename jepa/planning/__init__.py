"""Planning: action sequences whose imagined consequences come nearest to a goal."""

from jepa.planning.config import PlannerConfig
from jepa.planning.planner import PLANNERS, plan
from jepa.planning.search import Plan, PlanningError
from jepa.planning.space import ActionSpace, action_space, franka_space

__all__ = ["PLANNERS", "ActionSpace", "Plan", "PlannerConfig", "PlanningError", "action_space", "franka_space", "plan"]
