"""The study of SST-2: a course assignment on recurrent networks, answered from runs of its own."""

PROBLEMS = ("1.1", "1.2", "2.1", "2.2", "3.1", "3.2", "3.3", "3.4", "4.1", "4.2", "4.3", "5.1", "5.2")
