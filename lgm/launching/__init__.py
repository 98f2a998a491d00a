"""`lgm launch`: one config to Slurm, GKE, Cloud TPU VMs or this machine.

The engine is theirs: lgm fills the templates of `launch/`, checks that the config fits the machines, submits, and says
how to watch, cancel and resume. A run's resolved config is written beside its job, so that one that waits for days
trains what was launched; its folder is all the state there is, so launching again resumes.
"""
