"""Ahead-of-time planning: a config's train step compiled for machines that are not here."""

from lgm.planning.plan import Memory, Plan, plan
from lgm.planning.topology import Topology, read_topology

__all__ = ["Memory", "Plan", "Topology", "plan", "read_topology"]
