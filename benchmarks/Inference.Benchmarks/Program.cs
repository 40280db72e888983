using BenchmarkDotNet.Running;
using Inference.Benchmarks;

// `roofline` prints a table of ratios in a minute; anything else goes to BenchmarkDotNet (e.g. `--filter *MatVec*`).
if (args is ["roofline", .. var rest]) return Roofline.Run(rest);
if (args is ["kv-disk", .. var disk]) return KvDisk.Run(disk);
BenchmarkSwitcher.FromAssembly(typeof(Roofline).Assembly).Run(args);
return 0;
