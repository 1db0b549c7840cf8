"""Speed, measured against peers on the same work in one run; ``vitlib bench`` and ``vitlib speedrun``.

Needs a checkout with the ``bench`` extra (``pip install -e '.[bench]'``): the peers are no dependency of vitlib.
"""
