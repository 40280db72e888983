using Inference.Backends;
using Inference.Runtime.Chat;
using Inference.Runtime.Engine;
using Inference.Runtime.Tokenization;
using Inference.Runtime.Weights;
using Inference.Server.Options;

namespace Inference.Server.Commands;

/// <summary>Input that a verb cannot use. The message names the thing, what is wrong with it and the way out.</summary>
internal sealed class InputException(string message, Exception? inner = null) : Exception(message, inner);

/// <summary>An exception as its user reads it: lines without a stack trace, and the exit code.</summary>
internal sealed record Fault(int ExitCode, IReadOnlyList<string> Lines)
{
    private static readonly (string Property, Setting Setting)[] EngineSettings =
    [
        (nameof(EngineOptions.KvCapacityBytes), Settings.KvCacheBytes), (nameof(EngineOptions.ContextMax), Settings.ContextMax),
        (nameof(EngineOptions.SequencesMax), Settings.SequencesMax), (nameof(EngineOptions.StepTokensMax), Settings.StepTokensMax),
        (nameof(EngineOptions.PrefixesMax), Settings.PrefixesMax), (nameof(EngineOptions.Disk), Settings.KvDisk), (nameof(EngineOptions.QueueMax), Settings.QueueMax),
        (nameof(EngineOptions.QueueTokensMax), Settings.QueueTokensMax), (nameof(EngineOptions.TenantWeights), Settings.TenantWeights),
        (nameof(EngineOptions.PriorityAhead), Settings.PriorityAhead),
    ];

    public static Fault Of(Exception e, CancellationToken interrupted) => e switch
    {
        OperationCanceledException when interrupted.IsCancellationRequested => new(Verb.Interrupted, []),
        OptionsException options => new(Verb.BadInput, options.Errors),
        // Everything about a model folder, and what the verbs check themselves. GenerationDefaults reports a damaged file this way.
        InputException or ModelLoadException or TokenizerException or ChatEncodingException or InvalidDataException => Input(e.Message),
        EngineOptionsException engine => Input(Named(engine)),
        RequestRejectedException { Reason: RejectionReason.InvalidRequest } rejected => Input(Named(rejected)),
        RequestRejectedException or AnswerException or KvSessionException => Work(e.Message),
        BackendException { Kind: BackendErrorKind.Capacity } => Work(e.Message, "Give a smaller context or less text, or free memory."),
        BackendException { Kind: BackendErrorKind.Device } => Work(e.Message, "The device cannot be trusted any more; run it again, or with --backend cpu."),
        BackendException => Work(e.Message),
        OutOfMemoryException => Work("There is not enough memory.", "Give a smaller context or less text, or free memory."),
        IOException or UnauthorizedAccessException => Work(e.Message),
        _ => Work($"Unexpected: {e.GetType().Name}: {e.Message}", "This is a defect of the program; please report it with the command line."),
    };

    // The engine names its own properties: KvCapacityBytes is --kv-cache-bytes here.
    private static string Named(EngineOptionsException e)
    {
        string message = e.Message;
        foreach (var (property, setting) in EngineSettings) message = message.Replace(property, setting.CommandLine, StringComparison.Ordinal);
        return message;
    }

    // The engine names fields as the protocol does: sampling.top_p is --top-p here.
    private static string Named(RequestRejectedException e)
    {
        string name = e.Field?.Split('.')[^1].Replace('_', '-') ?? "";
        return name is "" or "prompt" ? e.Message : $"--{name}: {e.Message}";
    }

    private static Fault Input(string message) => new(Verb.BadInput, Split(message));

    private static Fault Work(string message, params string[] more) => new(Verb.Failed, [.. Split(message), .. more]);

    private static string[] Split(string message) => message.Split('\n', StringSplitOptions.RemoveEmptyEntries);
}
