"""`python -m karat` is `karat`: what `accelerate launch -m karat` needs."""

from karat.cli.base import main

main()
