"""Hardware facts: targets, vendor libraries, GPU, CPU and what their messages mean."""
