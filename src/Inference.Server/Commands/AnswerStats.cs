using Inference.Runtime.Engine;

namespace Inference.Server.Commands;

/// <summary>What an answer took, for people.</summary>
internal static class AnswerStats
{
    public static string Line(GenerationFinished finished)
    {
        var (usage, timings) = (finished.Usage, finished.Timings);
        string cached = usage.CachedTokens > 0 ? $" ({Units.Whole(usage.CachedTokens)} cached)" : "";
        string end = finished.Reason switch
        {
            FinishReason.Stop => "",
            FinishReason.Length => ", cut off at the token limit",
            FinishReason.Cancelled => ", stopped",
            _ => $", {finished.Reason}",
        };
        return $"prompt {Units.Whole(usage.PromptTokens)} tokens{cached}, output {Units.Whole(usage.OutputTokens)} tokens{end}; " +
            $"first token {Units.Time(timings.TimeToFirstToken)}, {Rate(finished)}total {Units.Time(timings.Total)}";
    }

    /// <summary>Tokens per second between the first and the last token; 0 when there are not two.</summary>
    public static double TokensPerSecond(GenerationFinished finished)
    {
        double seconds = (finished.Timings.Total - finished.Timings.TimeToFirstToken).TotalSeconds;
        return finished.Usage.OutputTokens > 1 && seconds > 0 ? (finished.Usage.OutputTokens - 1) / seconds : 0;
    }

    private static string Rate(GenerationFinished finished) =>
        TokensPerSecond(finished) is > 0 and var rate ? $"{Units.Digits(rate)} tokens/s, " : "";
}
