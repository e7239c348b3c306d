// Open MPI's all-reduce of f32, for tests/bench/collectives: prints "bytes microseconds" per size, the mean at rank 0.
//   all_reduce_mpi MEGABYTES_PER_SIZE SIZE...

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

int main(int count, char** words) {
  MPI_Init(&count, &words);
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  const long budget = atol(words[1]) << 20;
  for (int k = 2; k < count; ++k) {
    const long bytes = atol(words[k]), values = bytes / 4;
    long iterations = budget / bytes;
    iterations = iterations < 4 ? 4 : iterations > 1000 ? 1000 : iterations;
    const long warm = iterations / 10 < 2 ? 2 : iterations / 10;
    float *in = malloc((size_t)bytes), *out = malloc((size_t)bytes);
    for (long i = 0; i < values; ++i) in[i] = (float)((i * 7 + rank) % 1000), out[i] = 0;
    for (long i = 0; i < warm; ++i) MPI_Allreduce(in, out, (int)values, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    MPI_Barrier(MPI_COMM_WORLD);
    const double begin = MPI_Wtime();
    for (long i = 0; i < iterations; ++i) MPI_Allreduce(in, out, (int)values, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    if (rank == 0) printf("%ld %.2f\n", bytes, (MPI_Wtime() - begin) / (double)iterations * 1e6);
    fflush(stdout);
    free(in);
    free(out);
  }
  MPI_Finalize();
  return 0;
}
