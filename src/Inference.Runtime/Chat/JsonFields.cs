namespace Inference.Runtime.Chat;

/// <summary>
/// Reads the fields of one JSON object of a request and says, when one is not what it should be, where it is.
/// A missing field and null are the same; fields that nobody asks for are ignored, as the reference does.
/// </summary>
internal readonly struct JsonFields
{
    private readonly PythonValue _object;
    private readonly int? _messageIndex;
    private readonly string _path;

    /// <param name="path">Where the object is, inside its message or request; empty for the message itself.</param>
    public JsonFields(PythonValue value, int? messageIndex, string path, string wanted)
    {
        if (value.Kind != PythonKind.Object)
        {
            throw new ChatEncodingException(
                $"expected an object, found {value.Describe()}", $"give {wanted}", messageIndex, path.Length == 0 ? null : path);
        }
        _object = value;
        _messageIndex = messageIndex;
        _path = path;
    }

    public PythonValue? Value(string name) => _object.Member(name) is { IsNull: false } value ? value : null;

    public string? String(string name) => Value(name) switch
    {
        null => null,
        { Kind: PythonKind.String } value => value.Text,
        var value => throw Wrong(name, $"expected a string, found {value.Describe()}", "give a JSON string"),
    };

    public string RequiredString(string name, string wayOut) => String(name) ?? throw Wrong(name, "is missing", wayOut);

    public bool? Flag(string name) => Value(name) switch
    {
        null => null,
        { Kind: PythonKind.Literal } value => value.IsTruthy,
        var value => throw Wrong(name, $"expected true or false, found {value.Describe()}", "give a JSON boolean"),
    };

    public IReadOnlyList<PythonValue> Array(string name) => Value(name) switch
    {
        null => [],
        { Kind: PythonKind.Array } value => value.Items,
        var value => throw Wrong(name, $"expected an array, found {value.Describe()}", "give a JSON array"),
    };

    public ChatEncodingException Wrong(string name, string problem, string wayOut) =>
        new(problem, wayOut, _messageIndex, PathOf(name));

    public string PathOf(string name) => _path.Length == 0 ? name : $"{_path}.{name}";
}
