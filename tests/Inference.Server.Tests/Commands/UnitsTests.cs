using Inference.Server.Commands;
using Xunit;

namespace Inference.Server.Tests.Commands;

public sealed class UnitsTests
{
    [Theory]
    [InlineData(0, "0 B")]
    [InlineData(1023, "1,023 B")]
    [InlineData(1024, "1.00 KiB")]
    [InlineData(9_738_688, "9.29 MiB")]
    [InlineData(159_609_485_896, "149 GiB")]
    [InlineData(long.MaxValue, "8,192 PiB")]
    public void Bytes(long bytes, string text) => Assert.Equal(text, Units.Bytes(bytes));

    [Theory]
    [InlineData(999, "999")]
    [InlineData(4_046_529, "4.05 M")]
    [InlineData(284_330_000_000, "284 G")]
    public void Count(long count, string text) => Assert.Equal(text, Units.Count(count));

    [Theory]
    [InlineData(0.0012, "1.20 ms")]
    [InlineData(0.25, "250 ms")]
    [InlineData(12.34, "12.3 s")]
    public void Time(double seconds, string text) => Assert.Equal(text, Units.Time(TimeSpan.FromSeconds(seconds)));

    [Fact]
    public void Percentiles_are_by_nearest_rank()
    {
        var spread = Spread.Of(Enumerable.Range(1, 200).Select(i => (double)i).Reverse());
        Assert.Equal((100.5, 100, 198), (spread.Mean, spread.P50, spread.P99));
        Assert.Equal(new Spread(7, 7, 7), Spread.Of([7]));
    }
}
