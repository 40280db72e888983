// The strings of the DeepSeek-V4 prompt format (specification 5.2 and 5.8). They are wire constants: a byte more or
// less is another prompt, so the long ones are held by their SHA-256 in the tests. Line breaks are written as \n, so
// that no checkout can change them. The bars are U+FF5C, the low blocks U+2581.

namespace Inference.Runtime.Chat;

internal static class DeepSeekV4Wire
{
    public const string BeginOfSequence = "<｜begin▁of▁sentence｜>";
    public const string EndOfSequence = "<｜end▁of▁sentence｜>";
    public const string User = "<｜User｜>";
    public const string Assistant = "<｜Assistant｜>";
    public const string LatestReminder = "<｜latest_reminder｜>";
    public const string ThinkStart = "<think>";
    public const string ThinkEnd = "</think>";
    public const string Dsml = "｜DSML｜";

    public const string ToolResultStart = "<tool_result>";
    public const string ToolResultEnd = "</tool_result>";

    /// <summary>Between the blocks of a user turn, and between a message's text and what is appended to it.</summary>
    public const string BlankLine = "\n\n";

    // A tag's name is followed by its attributes or by '>', so these end before either.
    public const string CallsStart = "<" + Dsml + "tool_calls";
    public const string CallsEnd = "</" + Dsml + "tool_calls>";
    public const string InvokeStart = "<" + Dsml + "invoke";
    public const string InvokeEnd = "</" + Dsml + "invoke";
    public const string ParameterStart = "<" + Dsml + "parameter";
    public const string ParameterEnd = "</" + Dsml + "parameter";

    public const string NameAttribute = " name=\"";
    public const string StringAttribute = "\" string=\"true\">";
    public const string JsonAttribute = "\" string=\"false\">";

    /// <summary>The name that arguments get which are no JSON object.</summary>
    public const string UnparsedArgumentsName = "arguments";

    /// <summary>Prefix A: "max" of the preview, "high" of the general release. 476 bytes.</summary>
    public const string EffortPrefixA =
        "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n" +
        "You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve the root cause, " +
        "rigorously stress-testing your logic against all potential paths, edge cases, and adversarial scenarios.\n" +
        "Explicitly write out your entire deliberation process, documenting every intermediate step, considered alternative, " +
        "and rejected hypothesis to ensure absolutely no assumption is left unchecked.\n\n";

    /// <summary>Prefix B: "max" of the general release. 528 bytes.</summary>
    public const string EffortPrefixB =
        "Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.\n" +
        "You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: exhaustively decompose the problem " +
        "into its most fundamental components, trace every causal chain to its root, and resolve the underlying cause rather than " +
        "any surface symptom.\n" +
        "Do not stop reasoning until you have independently verified the solution from multiple angles and are certain that no " +
        "assumption remains unchecked and no error remains undiscovered.\n\n";

    /// <summary>Before the schemas, one JSON object a line. 890 bytes.</summary>
    public const string ToolsHead =
        "## Tools\n\n" +
        "You have access to a set of tools to help answer the user's question. You can invoke tools by writing a " +
        "\"" + CallsStart + ">\" block like the following:\n\n" +
        CallsStart + ">\n" +
        InvokeStart + " name=\"$TOOL_NAME\">\n" +
        ParameterStart + " name=\"$PARAMETER_NAME\" string=\"true|false\">$PARAMETER_VALUE" + ParameterEnd + ">\n" +
        "...\n" +
        InvokeEnd + ">\n" +
        InvokeStart + " name=\"$TOOL_NAME2\">\n" +
        "...\n" +
        InvokeEnd + ">\n" +
        CallsEnd + "\n\n" +
        "String parameters should be specified as is and set `string=\"true\"`. For all other types (numbers, booleans, arrays, " +
        "objects), pass the value in JSON format and set `string=\"false\"`.\n\n" +
        "If thinking_mode is enabled (triggered by " + ThinkStart + "), you MUST output your complete reasoning inside " +
        ThinkStart + "..." + ThinkEnd + " BEFORE any tool calls or final response.\n\n" +
        "Otherwise, output directly after " + ThinkEnd + " with tool calls or final response.\n\n" +
        "### Available Tool Schemas\n\n";

    /// <summary>After the schemas. 99 bytes.</summary>
    public const string ToolsTail =
        "\n\nYou MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.\n";

    public const string ResponseFormatHead =
        "## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n";

    public static string TaskToken(ChatTask task) => task switch
    {
        ChatTask.Action => "<｜action｜>",
        ChatTask.Query => "<｜query｜>",
        ChatTask.Authority => "<｜authority｜>",
        ChatTask.Domain => "<｜domain｜>",
        ChatTask.Title => "<｜title｜>",
        ChatTask.ReadUrl => "<｜read_url｜>",
        _ => throw new ArgumentOutOfRangeException(nameof(task), task, "not a task"),
    };
}
