"""The job of each command; its flags are in :mod:`etcd_actions.cli.parsing`.

To add a command ``NAME``:

1. Write its job here, in ``NAME.py``: an ``async def`` that takes
   :class:`~etcd_actions.cli.options.CommonOptions` and the values of its flags, and returns an
   :class:`~etcd_actions.cli.exit_codes.ExitCode`. Raise an error of :mod:`etcd_actions.errors`
   for a failure: ``exit_codes`` maps it to a message and a code. ``common.open_etcd()`` is the
   connection, ``backends.open_client`` the client, ``backends.open_backend`` etcd or the service.
2. Write its flags in a module of ``parsing``: a function with ``@command()``,
   ``@output_option(...)`` and ``@with_settings(COMMON)``, or ``BACKEND`` if it can use the
   service. Its docstring is the help. It imports the job in its body and calls ``run_async``.
3. Add a line to ``_COMMANDS`` in ``command_line.py``: the module and the first sentence of help.
4. Print through ``formats``: ``print_rows`` for a result that is complete, ``standard_output``
   for one that streams, ``exit_codes.print_message`` for one line on standard error.
5. Add it to the tables of ``README.md`` and ``docs/commands.md``, and a test to ``tests/cli``. A
   command that runs until a signal is also in the sets at the top of ``first_signal.py``.
"""
