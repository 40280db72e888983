using System.CommandLine;
using Inference.Server.Options;

namespace Inference.Server.Commands;

/// <summary>
/// Settings as options of a verb. A verb that loads a model adds <see cref="Settings.OfModel"/> and reads them with
/// <see cref="Reader"/>, so that every verb takes them from the command line, the environment and appsettings.json alike.
/// </summary>
internal sealed class SettingOptions
{
    private readonly Dictionary<Setting, Option> _options = [];
    private readonly Option<string?> _configuration =
        new("--config") { Description = "Configuration file; default: appsettings.json beside the program.", HelpName = "file" };

    public SettingOptions(Command command, IEnumerable<Setting> settings)
    {
        foreach (var setting in settings)
        {
            string help = setting.Default is null ? setting.Help : $"{setting.Help} Default: {setting.Default}.";
            Option option = setting.IsFlag
                ? new Option<bool>(setting.CommandLine) { Description = help }
                : new Option<string>(setting.CommandLine) { Description = help, HelpName = "value" };
            _options[setting] = option;
            command.Options.Add(option);
        }
        command.Options.Add(_configuration);
    }

    /// <summary>Reads what this command line, the process's environment and the file say.</summary>
    public OptionsReader Reader(ParseResult parsed)
    {
        var values = new Dictionary<string, string>();
        foreach (var (setting, option) in _options)
        {
            if (parsed.GetResult(option) is not { Implicit: false }) continue;
            values[setting.Name] = option is Option<bool> flag ? (parsed.GetValue(flag) ? "true" : "false") : parsed.GetValue((Option<string>)option) ?? "";
        }
        return new OptionsReader(values, OptionsReader.ProcessEnvironment(), parsed.GetValue(_configuration) ?? OptionsReader.DefaultConfigurationFile());
    }
}
