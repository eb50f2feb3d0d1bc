"""From ranges to Q/DQ graphs: placement, scales and codes, the rewrite; and calibration files of other tools."""
