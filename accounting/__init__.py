"""Usage accounting for coturn: the journey of an event, one way, from left to right.

coturn -> Redis -> capture.subscriber   bytes off the socket, nothing else
                -> capture.spool        raw messages, durable on local disk
                -> jobs.load, jobs.rows model.wire parses; rows and position in one transaction
                -> jobs.settle          model.lives cuts reports into lives and sums each
                -> jobs.rollup          user and realm usage by hour, day and month
                -> schema ``reporting``  what people and programs read
``cli`` wires it, ``commands`` are what it is told, ``service`` runs its processes, ``scheduler``
the jobs; ``store`` holds the SQL, ``model`` the rules; ``monitoring`` and ``doctor`` look at all of
it.
"""
