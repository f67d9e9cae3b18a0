"""``python -m denoise``, also under ``torchrun``."""

from denoise.cli import main

if __name__ == "__main__":
    main()
