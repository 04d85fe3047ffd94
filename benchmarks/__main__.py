"""`python -m benchmarks`."""

from benchmarks.measures import main

if __name__ == "__main__":
    main()
