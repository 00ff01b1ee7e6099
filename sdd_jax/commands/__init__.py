"""The commands: a module each, with ``define_flags()`` and ``main()``; the only rooms that know flags."""
