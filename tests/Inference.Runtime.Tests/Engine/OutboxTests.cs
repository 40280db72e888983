using Inference.Runtime.Engine;
using Xunit;

namespace Inference.Runtime.Tests.Engine;

public sealed class OutboxTests
{
    private static readonly GenerationFinished End = new(
        FinishReason.Stop, "", new(1, 0, 1), new(TimeSpan.Zero, TimeSpan.Zero, TimeSpan.Zero));

    private static GenerationDelta Delta(int index) => new(index, [index], "", default, null);

    [Fact]
    public void A_full_outbox_stalls_and_its_reader_ends_the_stall_once_half_is_read()
    {
        int calls = 0;
        var outbox = new Outbox(4, () => calls++);
        for (int i = 0; i < 3; i++) outbox.Write(Delta(i));
        Assert.False(outbox.TryStall());
        outbox.Write(Delta(3));
        Assert.True(outbox.TryStall());
        Assert.True(outbox.Reader.TryRead(out _));
        Assert.Equal(0, calls);
        Assert.True(outbox.Reader.TryRead(out _));
        Assert.Equal(1, calls);
        while (outbox.Reader.TryRead(out _)) { }
        Assert.Equal(1, calls);
    }

    [Fact]
    public async Task The_end_has_room_in_a_full_outbox_and_is_the_last()
    {
        var outbox = new Outbox(1, () => { });
        outbox.Write(new GenerationStarted(1, 0, TimeSpan.Zero));
        outbox.Write(Delta(0));
        outbox.Complete(End);
        var events = new List<GenerationEvent>();
        await foreach (var e in outbox.Reader.ReadAllAsync(TestContext.Current.CancellationToken)) events.Add(e);
        Assert.Same(End, events[^1]);
        Assert.Equal(3, events.Count);
    }

    [Fact]
    public async Task No_stall_is_forgotten_while_writer_and_reader_race()
    {
        const int Events = 200_000;
        using var caughtUp = new SemaphoreSlim(0);
        var outbox = new Outbox(3, () => caughtUp.Release());
        var reader = Task.Run(async () =>
        {
            int count = 0;
            await foreach (var _ in outbox.Reader.ReadAllAsync()) count++;
            return count;
        }, TestContext.Current.CancellationToken);
        for (int i = 0; i < Events; i++)
        {
            outbox.Write(Delta(i));
            if (outbox.TryStall()) await caughtUp.WaitAsync(TestContext.Current.CancellationToken);
        }
        outbox.Complete(End);
        Assert.Equal(Events + 1, await reader);
        Assert.Equal(0, caughtUp.CurrentCount);
    }
}
