using Inference.Backends;
using Inference.Runtime.KvCache;
using Inference.Runtime.Models;

namespace Inference.Runtime.Engine;

/// <summary>
/// What an operator may choose about an engine. Immutable; validated once, by the engine's constructor, with errors that name the option
/// and the values that would work (<see cref="EngineOptionsException"/>).
/// </summary>
public sealed record EngineOptions
{
    /// <summary>Token positions that the KV cache holds over all sequences; null = from <see cref="KvCapacityBytes"/>.</summary>
    public int? KvCapacityTokens { get; init; }

    /// <summary>Bytes that the KV cache may take; null, and no <see cref="KvCapacityTokens"/> = nine tenths of the backend's memory less
    /// <see cref="ReservedBytes"/>, and no more than <see cref="SequencesMax"/> full contexts need.</summary>
    public long? KvCapacityBytes { get; init; }

    /// <summary>Bytes of the backend's memory that are taken already (weights); matters only when the capacity is automatic.</summary>
    public long ReservedBytes { get; init; }

    /// <summary>Most positions of one sequence; null = the model's own limit.</summary>
    public int? ContextMax { get; init; }

    /// <summary>Most sequences that hold KV pages at once.</summary>
    public int SequencesMax { get; init; } = 32;

    /// <summary>Most tokens of one step, over all its sequences; at least <see cref="SequencesMax"/>, so that every one of them can decode.</summary>
    public int StepTokensMax { get; init; } = 256;

    /// <summary>Most accepted requests that wait for their first step; more are refused as overloaded.</summary>
    public int QueueMax { get; init; } = 256;

    /// <summary>Events kept for a reader that does not read; a sequence whose outbox is full rests until there is room.</summary>
    public int OutboxMax { get; init; } = 128;
}

/// <summary>An option of the engine cannot work.</summary>
/// <param name="Option">Name of the property of <see cref="EngineOptions"/>.</param>
public sealed class EngineOptionsException(string option, string message) : Exception($"{option}: {message}")
{
    public string Option { get; } = option;
}
