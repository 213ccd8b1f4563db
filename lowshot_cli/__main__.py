"""`python -m lowshot_cli`."""

from lowshot_cli.cli.main import main

if __name__ == "__main__":
    main()
