"""The commands: each reads its arguments, calls another room, and prints the result.

In: a command line. Out: data on standard output, messages on standard error, an exit code. A
command contains neither rules nor SQL. Each command module has a ``register`` function, which
`main` calls.

    main                      the Typer application, errors and exit codes
    arguments, resources      shared arguments; settings and database connections
    output, table, rows       standard output and error; tables; rows of the views
    progress                  progress bars
    run, admin, diagnose      up, collect, load, schedule; db, job; health, doctor, config
    realms, sources           realm, source
    reports, export, feed     sessions, usage; export; feed
    periods, statement        period, adjust; statement
    audit, trace, erase       verify, rebuild, reconcile; trace; erase
    simulate, demo            simulate; demo
"""
