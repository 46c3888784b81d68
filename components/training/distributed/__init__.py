"""Training on several nodes through Kubeflow Trainer.

The step (``training``) divides the training rows among the nodes, starts them as one job, waits, and delivers what they learned
by the same code as a trainer on one node. The nodes (``node``) are pods of a TrainJob (``cluster_job``) or processes of this
machine (``local_job``); they learn together, and pass everything else through a folder or an object store (``job_folder``).
"""
