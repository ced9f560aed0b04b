"""What every benchmark is made of: workloads, honest latencies, repetitions, results."""
