using BenchmarkDotNet.Running;
using Inference.Benchmarks;

// `roofline` prints a table of ratios in a minute; `needle` a grid of what a model finds in long texts; anything else goes to BenchmarkDotNet (e.g. `--filter *MatVec*`).
if (args is ["roofline", .. var rest]) return Roofline.Run(rest);
if (args is ["kv-disk", .. var disk]) return KvDisk.Run(disk);
if (args is ["needle", .. var needle]) return await NeedleGrid.RunAsync(needle);
if (args is ["prefix-traces", .. var traces]) return PrefixTraces.Run(traces);
if (args is ["load", .. var load]) return await Inference.Benchmarks.Load.LoadProgram.RunAsync(load);
BenchmarkSwitcher.FromAssembly(typeof(Roofline).Assembly).Run(args);
return 0;
