"""``python -m edgeres``"""

from edgeres.cli import main

if __name__ == "__main__":
    main()
