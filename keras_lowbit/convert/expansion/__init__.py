"""Stock layers without an integer form of their own, as compositions of operations that have one."""
