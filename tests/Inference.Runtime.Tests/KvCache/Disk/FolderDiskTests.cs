// Which folders are refused, and that a real one keeps what a store writes: through its threads, over many reads, writes and cancellations.
using System.Runtime.Versioning;
using Inference.Runtime.KvCache;
using Inference.Runtime.KvCache.Disk;
using Inference.Testing;
using Microsoft.Extensions.Logging.Abstractions;
using Xunit;
using static Inference.Simulation.KvExtents;

namespace Inference.Runtime.Tests.KvCache.Disk;

[SupportedOSPlatform("linux")]
public sealed class FolderDiskTests : IDisposable
{
    private readonly TemporaryFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    private static string Refusal(string path) => Assert.Throws<KvFolderException>(() => FolderDisk.Open(path).Dispose()).Message;

    [Fact]
    public void A_new_folder_and_its_files_are_for_this_user_alone()
    {
        string path = _folder["new/kv"];
        using var disk = FolderDisk.Open(path);
        using (var file = disk.Create("0000000000000001.kv", 100)) file.WriteAt([1, 2, 3], 0);
        Assert.Equal(UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute, File.GetUnixFileMode(path));
        Assert.All(Directory.GetFiles(path), f => Assert.Equal(UnixFileMode.UserRead | UnixFileMode.UserWrite, File.GetUnixFileMode(f)));
        Assert.Equal([("0000000000000001.kv", 3L)], disk.List());
    }

    [Fact]
    public void Folders_that_others_could_write_read_or_lead_elsewhere_are_refused()
    {
        string path = _folder["kv"];
        FolderDisk.Open(path).Dispose();
        File.CreateSymbolicLink(_folder["link"], path);
        Assert.Contains("symbolic link", Refusal(_folder["link"]));
        Assert.Contains("symbolic link", Refusal(_folder["link"] + "/"));
        foreach (var mode in new[] { UnixFileMode.GroupRead, UnixFileMode.GroupWrite, UnixFileMode.OtherExecute })
        {
            File.SetUnixFileMode(path, UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute | mode);
            Assert.Contains("open to others", Refusal(path));
        }
        File.WriteAllText(_folder["file"], "");
        Assert.Contains(_folder["file"], Refusal(_folder["file"]));
    }

    [Fact]
    public void A_folder_of_another_user_is_refused()
    {
        Assert.SkipUnless(Environment.UserName == "root", "only root can give a folder away");
        string path = _folder["kv"];
        FolderDisk.Open(path).Dispose();
        System.Diagnostics.Process.Start("chown", ["12345", path]).WaitForExit();
        Assert.Contains("belongs to user 12345", Refusal(path));
    }

    [Theory]
    [InlineData("notes.txt")]
    [InlineData("0000000000000001.KV")]
    [InlineData("000000000000001.kv")]
    [InlineData("0000000000000001.kv.bak")]
    public void A_folder_with_anything_else_in_it_is_refused_and_left_alone(string name)
    {
        string path = _folder["kv"];
        FolderDisk.Open(path).Dispose();
        File.WriteAllText(Path.Combine(path, name), "precious");
        Assert.Contains(name, Refusal(path));
        Assert.Equal("precious", File.ReadAllText(Path.Combine(path, name)));
    }

    [Fact]
    public void A_link_or_folder_under_a_name_of_ours_is_refused()
    {
        string path = _folder["kv"], name = Path.Combine(path, "0000000000000001.kv");
        FolderDisk.Open(path).Dispose();
        File.CreateSymbolicLink(name, "/etc/passwd");
        Assert.Contains("0000000000000001.kv", Refusal(path));
        File.Delete(name);
        Directory.CreateDirectory(name);
        Assert.Contains("0000000000000001.kv", Refusal(path));
    }

    [Fact]
    public void A_folder_in_use_is_refused_until_it_is_let_go()
    {
        string path = _folder["kv"];
        using (FolderDisk.Open(path)) Assert.Contains("in use", Refusal(path));
        FolderDisk.Open(path).Dispose();
    }

    [Fact]
    public void Errors_of_the_disk_are_io_exceptions()
    {
        using var disk = FolderDisk.Open(_folder["kv"]);
        Assert.ThrowsAny<IOException>(() => disk.OpenRead("0000000000000001.kv"));
        Assert.ThrowsAny<IOException>(() => disk.Rename("0000000000000001.tmp", "0000000000000001.kv"));
        disk.Delete("0000000000000001.kv");
        disk.FlushFolder();
    }

    [Fact]
    public void Threads_write_and_read_while_reads_are_cancelled_and_extents_dropped()
    {
        string path = _folder["kv"];
        var load = new KvLoad(5);
        using var woken = new AutoResetEvent(false);
        var options = new KvTierOptions { WriteStagingBytes = 64 << 10, ReadStagingBytes = 32 << 10, PieceBytes = 2000 };
        var store = KvStore.Open(FolderDisk.Open(path), Layout, 256 << 10, NullLogger.Instance);
        int done = 0, cancelled = 0;
        using (var tier = new KvTier(store, options, () => woken.Set(), TimeProvider.System, NullLogger.Instance))
        {
            tier.Start();
            for (int i = 0; i < 400; i++)
            {
                KvTicket? last = null;
                var prompt = load.Prompt();
                foreach (var header in load.Missing(prompt, tier.Contains)) last = tier.TryWrite(header, false, payload => Fill(header, payload)) ?? last;
                if (load.Random.Next(2) == 0) SpinWait.SpinUntil(() => last is null || last.IsDone, 1000);
                var (root, tokens) = load.Random.Next(3) == 0 ? load.Prompt() : prompt;
                var chain = tier.Find(root, Names(root, tokens), tokens, tokens.Length);
                if (chain is null) continue;
                using var read = tier.BeginRead(chain, 0);
                int stopAfter = load.Random.Next(3) == 0 ? load.Random.Next(chain.BlockCount + 1) : int.MaxValue, parts = 0;
                while (read.State == KvReadState.Reading && parts < stopAfter)
                {
                    if (!read.TryTake(out var part)) woken.WaitOne(20);
                    else
                    {
                        var extent = part.IsSnapshot ? chain.Snapshot : chain.Ranges.Last(r => parts >= r.FirstBlock && r.BlockCount > 0).Extent;
                        Assert.True(Agrees(extent.Header, parts++ - extent.Header.FirstBlock, part.Bytes));
                    }
                }
                if (read.State == KvReadState.Done) done++;
                else if (read.State == KvReadState.Reading) cancelled++;
                else Assert.Equal(KvDrop.Evicted, read.Failure);
            }
            Assert.True(tier.Counts().Store.Bytes <= 256 << 10);
            Assert.Equal(0, tier.Counts().WriteFailures);
        }
        Assert.True(done > 50 && cancelled > 20, $"{done} done, {cancelled} cancelled");
        using var again = KvStore.Open(FolderDisk.Open(path), Layout, 256 << 10, NullLogger.Instance);
        CheckTree(again);
        Assert.All(again.Extents(), e => Assert.True(Check(again, e)));
        Assert.NotEmpty(again.Extents());
    }

    [Fact]
    public void A_real_disk_that_is_full_costs_what_does_not_fit_and_nothing_else()
    {
        Directory.CreateDirectory(_folder["full"]);
        Assert.SkipUnless(Run("mount", "-t", "tmpfs", "-o", "size=512k,mode=700", "tmpfs", _folder["full"]), "a file system of its own needs root");
        try
        {
            var store = KvStore.Open(FolderDisk.Open(_folder["full/kv"]), Layout, 1L << 30, NullLogger.Instance);
            using var tier = new KvTier(store, new KvTierOptions(), () => { }, TimeProvider.System, NullLogger.Instance);
            var load = new KvLoad(3);
            var tickets = new List<KvTicket>();
            while (!tier.Counts().Paused)
            {
                foreach (var header in load.Missing(load.Prompt(), tier.Contains))
                    if (tier.TryWrite(header, false, payload => Fill(header, payload)) is { } ticket) tickets.Add(ticket);
                while (tier.RunOne()) { }
            }
            Assert.Contains(tickets, t => t.Result == KvWriteResult.Failed);
            Assert.InRange(tickets.Count(t => t.Result == KvWriteResult.Written), 40, 128);
            Assert.Equal(tickets.Count(t => t.Result == KvWriteResult.Written), store.Extents().Count);
            Assert.All(store.Extents(), e => Assert.True(Check(store, e)));
            Assert.Empty(Directory.GetFiles(_folder["full/kv"], "*.tmp"));
            CheckTree(store);
        }
        finally
        {
            Run("umount", _folder["full"]);
        }

        static bool Run(string program, params string[] arguments)
        {
            try
            {
                using var process = System.Diagnostics.Process.Start(new System.Diagnostics.ProcessStartInfo(program, arguments) { RedirectStandardError = true })!;
                process.StandardError.ReadToEnd();
                process.WaitForExit();
                return process.ExitCode == 0;
            }
            catch (System.ComponentModel.Win32Exception)
            {
                return false;
            }
        }
    }
}
