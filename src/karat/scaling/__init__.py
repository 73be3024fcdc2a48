"""More than one machine: what karat does on a cluster. It hands work to engines that are there, and makes none."""
