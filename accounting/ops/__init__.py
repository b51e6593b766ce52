"""Operation: the service's processes and jobs, its monitoring, and ``doctor``.

In: the settings. Out: running processes, ``/metrics``, ``/healthz``, findings. Invariant: whatever
is captured before a stop signal is loaded, settled and rolled up before the process ends.

``service``            ``up``, ``collect``, ``load`` and ``schedule``, each one process
``servers``            the configured or embedded Postgres and Redis
``processes``          child processes: started, restarted, stopped
``fork_server``        forks them from a process that has imported everything; ``process_title``
``library_pages``      releases memory that only importing needed; ``malloc`` limits what is kept
``collector_process``  captures and loads while this collector has the lease
``lease_keeper``       acquires and renews the lease in a thread
``scheduler``          runs the jobs of ``registry`` at intervals; ``job_runs`` stores the results
``monitoring``         a read-only snapshot of the service, its metrics and its health
``doctor``             examines everything that the service depends on
"""
