from sstkern.engines import interpreting

# These run the kernels, and so in processes of their own: test_interpreted.py starts them, with TRITON_INTERPRET=1.
collect_ignore = [] if interpreting() else ["test_layer.py", "test_math.py", "test_programs.py", "test_functions.py", "test_cuts.py"]
